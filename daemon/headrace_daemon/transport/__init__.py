"""The socket: listening, and one session per connection."""
