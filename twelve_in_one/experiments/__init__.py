"""The paper's comparisons, each as one command: trainings of a grid, a table and a plot."""
