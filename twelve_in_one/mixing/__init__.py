"""Which tasks train in a round: stop-and-go, and the plan that it decides."""
