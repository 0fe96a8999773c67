"""Types of columns: values as parameters and as JSON, comparisons, and fields that do not fit."""
