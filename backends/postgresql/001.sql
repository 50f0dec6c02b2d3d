-- Each run of a job.
CREATE TABLE {runs} (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lane smallint NOT NULL,
    id text COLLATE "C" NOT NULL UNIQUE,
    job text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL CHECK (state IN ('open', 'complete', 'incomplete')),
    started_at timestamptz NOT NULL,
    progressed_at timestamptz NOT NULL,
    finished_at timestamptz,
    resume_within double precision NOT NULL,
    checkpoint bytea,
    expected bigint,
    extracted bigint NOT NULL DEFAULT 0,
    duplicates bigint NOT NULL DEFAULT 0,
    rejected bigint NOT NULL DEFAULT 0,
    unusable bigint NOT NULL DEFAULT 0,
    report bytea
) WITH (fillfactor = 50);

-- Tasks as they were stored, and dead letters: those with a reason, which also have their position here.
CREATE TABLE {entries} (
    sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lane smallint NOT NULL,
    run bigint,
    key text COLLATE "C",
    task_id text COLLATE "C",
    headers json,
    payload bytea NOT NULL,
    stored_at timestamptz NOT NULL,
    position bigint,
    reason text COLLATE "C",
    rejected_at timestamptz,
    first_rejected_at timestamptz,
    times integer NOT NULL DEFAULT 0,
    CHECK ((position IS NULL) = (reason IS NULL))
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX {entries_keys} ON {entries} (run, key) WHERE run IS NOT NULL AND key IS NOT NULL;
CREATE INDEX {entries_dead} ON {entries} (lane, position) WHERE reason IS NOT NULL;
CREATE INDEX {entries_letters} ON {entries} (key) WHERE reason IS NOT NULL;

-- Which tasks an application appended that have no position yet: commits come in another order than inserts.
CREATE TABLE {incoming} (
    lane smallint NOT NULL,
    sequence bigint NOT NULL,
    PRIMARY KEY (lane, sequence)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);

-- Which tasks are at which position.
CREATE TABLE {positions} (
    lane smallint NOT NULL,
    position bigint NOT NULL,
    sequence bigint NOT NULL,
    PRIMARY KEY (lane, position)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);

-- What a relay holds: how far positions are given, what the sink holds, and how often the lock was taken.
CREATE TABLE {lanes} (
    lane smallint PRIMARY KEY,
    last_position bigint NOT NULL DEFAULT 0,
    acknowledged bytea NOT NULL DEFAULT '',
    epoch bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE {state} (
    lane smallint NOT NULL,
    name text COLLATE "C" NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (lane, name)
) WITH (fillfactor = 50);
