"""What a run tells the outside: run.json, times, trackers."""
