"""PostgresqlOutbox: tasks in tables of a PostgreSQL server, for services on several machines."""

from .lanes import PostgresqlLanes
from .outbox import PostgresqlOutbox

__all__ = ["PostgresqlLanes", "PostgresqlOutbox"]
