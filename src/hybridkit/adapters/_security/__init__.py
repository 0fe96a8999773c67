"""Authentication and policies in front of the routes of an HTTP application."""
