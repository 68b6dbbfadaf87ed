"""What a run will need on machines that are not at hand: memory, time and traffic, by compiling."""
