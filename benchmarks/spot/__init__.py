"""Parts of `preemption.py`: traces of spot machines, a model of a run on one, and real runs that are killed."""
