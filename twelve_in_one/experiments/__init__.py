"""The paper's comparisons, each as one command: trainings of a grid, a table and a plot.

An experiment is a module that `__main__` names, with

  MODELS              choices of --models; () if there is nothing to choose
  ALWAYS              models that are always included, as others depend on them
  BASE                name of the config to vary, if it is not that of the world of the twelve
  count(base, seeds, models)        largest number of trainings; ValueError if the config cannot be
                      used for it
  run(runner, base, seeds, models)  trains what is missing -> one `comparison.Outcome` per seed
  report(outcomes)    Markdown
  plot(outcomes, path)              a picture, as PNG
"""
