"""The OpenAPI document of a data service."""
