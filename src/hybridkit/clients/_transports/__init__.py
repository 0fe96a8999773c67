"""The ways to send a request: HTTP/1.1 on asyncio, httpx, or an application in the same process."""
