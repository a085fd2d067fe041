"""A new model every night, scored beside the champion."""
