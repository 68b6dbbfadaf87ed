"""What a run writes down of itself: metrics, means, times and the profile of its device."""
