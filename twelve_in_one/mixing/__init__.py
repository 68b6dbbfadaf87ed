"""Choice of the tasks that train in a round: stop-and-go, and the resulting plan."""
