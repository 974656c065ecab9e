"""What plugins implement and what a run gives back: algorithms, pools, tasks, specs, reports."""
