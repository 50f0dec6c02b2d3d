"""What tells those who run a relay how it does: metrics, health, pings, and a page. Loaded where it is asked for."""
