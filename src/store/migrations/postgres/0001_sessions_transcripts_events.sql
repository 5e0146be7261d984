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
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    ended_at   BIGINT,
    -- Events of this session in the log, and the newest that has been dropped from it.
    events_kept       BIGINT NOT NULL DEFAULT 0,
    events_dropped_to BIGINT NOT NULL DEFAULT 0,
    UNIQUE (tenant, room, origin, origin_key)
);

CREATE INDEX sessions_by_status ON sessions (tenant, status, created_at);

CREATE TABLE transcripts (
    seq          BIGSERIAL PRIMARY KEY,
    id           TEXT NOT NULL,
    tenant       TEXT NOT NULL DEFAULT 'default',
    session_id   TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    kind         TEXT NOT NULL CHECK (kind IN ('user', 'agent')),
    speaker_id   TEXT NOT NULL,
    speaker_name TEXT NOT NULL,
    content      TEXT NOT NULL,
    -- The start of the speech, in ms since the session's started_at.
    timestamp_ms BIGINT NOT NULL,
    duration_ms  BIGINT NOT NULL,
    confidence   DOUBLE PRECISION NOT NULL,
    is_final     BOOLEAN NOT NULL DEFAULT TRUE,
    flagged      BOOLEAN NOT NULL DEFAULT FALSE,
    flag_reason  TEXT,
    created_at   BIGINT NOT NULL,
    -- Ingest is idempotent by this.
    UNIQUE (tenant, id)
);

CREATE INDEX transcripts_by_session ON transcripts (session_id);
CREATE INDEX transcripts_by_time ON transcripts (session_id, timestamp_ms, seq);

-- What a live listener may have missed: bounded per session. A final is a reference, so that a
-- transcript's text is stored (and erased) in one place.
CREATE TABLE events (
    seq           BIGSERIAL PRIMARY KEY,
    tenant        TEXT NOT NULL DEFAULT 'default',
    session_id    TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    kind          TEXT NOT NULL,
    transcript_seq BIGINT REFERENCES transcripts (seq) ON DELETE CASCADE,
    data          TEXT,
    created_at    BIGINT NOT NULL
);

CREATE INDEX events_by_session ON events (session_id, seq);
CREATE INDEX events_by_transcript ON events (transcript_seq) WHERE transcript_seq IS NOT NULL;

-- Rows of other tenants do not exist, not even for the tables' owner; '*' is the whole house.

ALTER TABLE sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE sessions FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON sessions
    USING (tenant = current_setting('antiphon.tenant', TRUE)
           OR current_setting('antiphon.tenant', TRUE) = '*');

ALTER TABLE transcripts ENABLE ROW LEVEL SECURITY;
ALTER TABLE transcripts FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON transcripts
    USING (tenant = current_setting('antiphon.tenant', TRUE)
           OR current_setting('antiphon.tenant', TRUE) = '*');

ALTER TABLE events ENABLE ROW LEVEL SECURITY;
ALTER TABLE events FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON events
    USING (tenant = current_setting('antiphon.tenant', TRUE)
           OR current_setting('antiphon.tenant', TRUE) = '*');
