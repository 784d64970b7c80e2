"""Jobs, schedules, runs, datasets: from a spec to weights, in a way that can be done again."""
