"""The asynchronous client, for asyncio."""
