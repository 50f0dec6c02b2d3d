"""What one writes first, for the benchmark of whole runs: ``python plain.py API_URL DATABASE REDIS_PORT``.

One session, page for page; a model per city; a table with a status column; a pipeline of XADDs per page, then the
status is updated. A crash between the two sends the page again, a lost reply too; nothing is retried, and no page is
missed only as long as none fails.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import uuid

import redis
import requests
from pydantic import BaseModel


class City(BaseModel):
    """A city as the service gives it."""

    city_id: int
    latitude_deg: float
    longitude_deg: float


class Task(BaseModel):
    """What goes to the stream."""

    task_id: uuid.UUID
    latitude_deg: float
    longitude_deg: float
    city_id: int


def main(api_url: str, database: str, port: int) -> None:
    """Enqueue all cities."""
    db = sqlite3.connect(database)
    db.execute("CREATE TABLE tasks (task_id TEXT PRIMARY KEY, city_id INTEGER UNIQUE, data TEXT, status TEXT)")
    client = redis.Redis(port=port)
    with requests.Session() as session:
        page = done = 0
        while True:
            answer = session.get(f"{api_url}/cities/", params={"page": page, "limit": 100}, timeout=30)
            answer.raise_for_status()
            found = answer.json()
            cities = [City.model_validate(city) for city in found["cities"]]
            tasks = [Task(task_id=uuid.uuid4(), **city.model_dump()) for city in cities]
            rows = [
                (str(task.task_id), task.city_id, json.dumps(task.model_dump(mode="json")), "new") for task in tasks
            ]
            db.executemany("INSERT INTO tasks VALUES (?, ?, ?, ?)", rows)
            db.commit()
            pipe = client.pipeline(transaction=False)
            for _, _, data, _ in rows:
                pipe.xadd("s", {"data": data})
            pipe.execute()
            db.executemany("UPDATE tasks SET status = 'sent' WHERE task_id = ?", [row[:1] for row in rows])
            db.commit()
            done += len(rows)
            page += 1
            if done >= found["total_count"]:
                return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
