"""Before anything is spent: what a run asks for, and what it would take by counted operations and known devices."""
