"""The public edge of an API: requests read and limited, keys and sessions, problems as answers."""
