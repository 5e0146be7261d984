CREATE TABLE sessions (
    id         TEXT PRIMARY KEY NOT NULL,
    tenant     TEXT NOT NULL DEFAULT 'default',
    room       TEXT NOT NULL,
    -- 'api': made by a client; 'worker': made by the first report from an unknown room.
    origin     TEXT NOT NULL DEFAULT 'api' CHECK (origin IN ('api', 'worker')),
    -- Tells one life of a room from the next when its name is used again; empty for 'api'.
    origin_key TEXT NOT NULL DEFAULT '',
    status     TEXT NOT NULL CHECK (status IN ('created', 'in_progress', 'completed')),
    agent      TEXT NOT NULL DEFAULT '',
    metadata   TEXT NOT NULL DEFAULT '{}',
    -- All times are ms since the Unix epoch.
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at   INTEGER,
    -- Events of this session in the log, and the newest that has been dropped from it.
    events_kept       INTEGER NOT NULL DEFAULT 0,
    events_dropped_to INTEGER NOT NULL DEFAULT 0,
    UNIQUE (tenant, room, origin, origin_key)
);

CREATE INDEX sessions_by_status ON sessions (tenant, status, created_at);

CREATE TABLE transcripts (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    id           TEXT NOT NULL,
    tenant       TEXT NOT NULL DEFAULT 'default',
    session_id   TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    kind         TEXT NOT NULL CHECK (kind IN ('user', 'agent')),
    speaker_id   TEXT NOT NULL,
    speaker_name TEXT NOT NULL,
    content      TEXT NOT NULL,
    -- The start of the speech, in ms since the session's started_at.
    timestamp_ms INTEGER NOT NULL,
    duration_ms  INTEGER NOT NULL,
    confidence   REAL NOT NULL,
    is_final     INTEGER NOT NULL DEFAULT 1,
    flagged      INTEGER NOT NULL DEFAULT 0,
    flag_reason  TEXT,
    created_at   INTEGER NOT NULL,
    -- Ingest is idempotent by this.
    UNIQUE (tenant, id)
);

CREATE INDEX transcripts_by_session ON transcripts (session_id);
CREATE INDEX transcripts_by_time ON transcripts (session_id, timestamp_ms, seq);

-- What a live listener may have missed: bounded per session. A final is a reference, so that a
-- transcript's text is stored (and erased) in one place.
CREATE TABLE events (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant        TEXT NOT NULL DEFAULT 'default',
    session_id    TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    kind          TEXT NOT NULL,
    transcript_seq INTEGER REFERENCES transcripts (seq) ON DELETE CASCADE,
    data          TEXT,
    created_at    INTEGER NOT NULL
);

CREATE INDEX events_by_session ON events (session_id, seq);
CREATE INDEX events_by_transcript ON events (transcript_seq) WHERE transcript_seq IS NOT NULL;
