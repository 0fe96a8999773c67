"""Values of columns: as parameters, as JSON, and those that do not fit."""
