"""The paper's comparisons, each as one command: trainings of a grid, a table and a plot.

An experiment is a module that `__main__` names, with

  MODELS              what --models may choose from; () if there is nothing to choose
  ALWAYS              those of them that no choice leaves out, as others depend on them
  count(base, seeds, models)        trainings that there will be, at most; ValueError if the config
                      cannot be used for it
  run(runner, base, seeds, models)  trains what is missing -> a `comparison.Outcome` a seed
  report(outcomes)    Markdown
  plot(outcomes, path)              a picture, as PNG
"""
