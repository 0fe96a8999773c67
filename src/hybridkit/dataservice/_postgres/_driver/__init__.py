"""The way to the server: URLs, connections, their pool, codecs, and what errors mean."""
