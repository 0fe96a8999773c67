"""The ways to send a request: httpx, aiohttp, or an application in the same process."""
