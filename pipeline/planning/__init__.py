"""Plans: what a run would take, from counted operations and what devices are known to do."""
