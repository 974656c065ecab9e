"""The classes that plugins implement, and the results of runs: stages, pools, specs, reports."""
