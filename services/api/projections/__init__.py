"""From streams to rows: everything here can be thrown away and read again."""
