-- The user who owns it; empty: the tenant's own.
ALTER TABLE sessions ADD COLUMN owner TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN kind TEXT NOT NULL DEFAULT 'session'
    CHECK (kind IN ('session', 'voice'));
ALTER TABLE sessions ADD COLUMN agent_type TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN max_participants BIGINT NOT NULL DEFAULT 10;
-- JSON, as it was given at the start; NULL: nobody has said anything.
ALTER TABLE sessions ADD COLUMN consent TEXT;
-- What is to be done about the agent, and when: 'leave' or 'unsubscribe'.
ALTER TABLE sessions ADD COLUMN agent_pending TEXT;
ALTER TABLE sessions ADD COLUMN agent_due BIGINT;

CREATE INDEX sessions_by_owner ON sessions (tenant, owner, created_at);
CREATE INDEX sessions_by_room ON sessions (room);
CREATE INDEX sessions_by_agent_due ON sessions (agent_due) WHERE agent_due IS NOT NULL;
CREATE INDEX transcripts_by_speaker ON transcripts (tenant, speaker_id);

CREATE TABLE tenants (
    id             TEXT PRIMARY KEY NOT NULL,
    name           TEXT NOT NULL,
    retention_days BIGINT NOT NULL DEFAULT 90 CHECK (retention_days IN (30, 90, 365)),
    -- Requests a second; NULL: the process's own limit.
    rate_limit     BIGINT,
    redact         BOOLEAN NOT NULL DEFAULT FALSE,
    created_at     BIGINT NOT NULL,
    revoked_at     BIGINT
);

CREATE TABLE api_keys (
    id         TEXT PRIMARY KEY NOT NULL,
    tenant     TEXT NOT NULL,
    prefix     TEXT NOT NULL UNIQUE,
    -- SHA-256 of the whole key, in hex.
    hash       TEXT NOT NULL,
    role       TEXT NOT NULL CHECK (role IN ('participant', 'agent', 'admin')),
    subject    TEXT NOT NULL DEFAULT '',
    label      TEXT NOT NULL DEFAULT '',
    created_at BIGINT NOT NULL,
    revoked_at BIGINT
);

CREATE TABLE links (
    token         TEXT PRIMARY KEY NOT NULL,
    tenant        TEXT NOT NULL,
    session_id    TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    -- argon2id in PHC's string format.
    password_hash TEXT NOT NULL,
    name          TEXT NOT NULL,
    attempts      BIGINT NOT NULL DEFAULT 0,
    created_at    BIGINT NOT NULL,
    expires_at    BIGINT NOT NULL,
    used_at       BIGINT
);

CREATE INDEX links_by_session ON links (session_id);

CREATE TABLE recordings (
    id          TEXT PRIMARY KEY NOT NULL,
    tenant      TEXT NOT NULL,
    session_id  TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    filename    TEXT NOT NULL,
    -- Where it is in the storage.
    object_key  TEXT NOT NULL,
    track_type  TEXT NOT NULL,
    source      TEXT NOT NULL CHECK (source IN ('egress', 'worker')),
    status      TEXT NOT NULL CHECK (status IN ('active', 'complete', 'failed')),
    egress_id   TEXT,
    encrypted   BOOLEAN NOT NULL DEFAULT FALSE,
    duration_ms BIGINT NOT NULL DEFAULT 0,
    file_size   BIGINT NOT NULL DEFAULT 0,
    created_at  BIGINT NOT NULL,
    ended_at    BIGINT
);

CREATE INDEX recordings_by_session ON recordings (session_id, created_at);
CREATE INDEX recordings_by_egress ON recordings (egress_id) WHERE egress_id IS NOT NULL;

CREATE TABLE participants (
    tenant     TEXT NOT NULL,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    identity   TEXT NOT NULL,
    name       TEXT NOT NULL,
    agent      BOOLEAN NOT NULL DEFAULT FALSE,
    joined_at  BIGINT NOT NULL,
    left_at    BIGINT,
    PRIMARY KEY (tenant, session_id, identity)
);

CREATE INDEX participants_by_identity ON participants (tenant, identity);

CREATE TABLE audit (
    seq    BIGSERIAL PRIMARY KEY,
    tenant TEXT NOT NULL,
    at     BIGINT NOT NULL,
    -- Who: a user, a key, or 'system'.
    actor  TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    -- JSON
    detail TEXT NOT NULL DEFAULT '{}'
);

CREATE INDEX audit_by_tenant ON audit (tenant, seq);

-- Webhooks that have been acted on: LiveKit sends one again until it is answered.
CREATE TABLE webhook_events (
    id          TEXT PRIMARY KEY NOT NULL,
    tenant      TEXT NOT NULL,
    received_at BIGINT NOT NULL
);

CREATE INDEX webhook_events_by_time ON webhook_events (received_at);

-- Whose data has been erased: a report that comes late must not bring it back.
CREATE TABLE erasures (
    tenant   TEXT NOT NULL,
    identity TEXT NOT NULL,
    at       BIGINT NOT NULL,
    PRIMARY KEY (tenant, identity)
);

-- Knowledge of an entity or department.
CREATE TABLE documents (
    id            TEXT PRIMARY KEY NOT NULL,
    tenant        TEXT NOT NULL,
    entity_id     TEXT NOT NULL DEFAULT '',
    department_id TEXT NOT NULL DEFAULT '',
    title         TEXT NOT NULL,
    content       TEXT NOT NULL,
    created_at    BIGINT NOT NULL
);

CREATE INDEX documents_by_tenant ON documents (tenant, created_at);

-- Rows of other tenants do not exist, not even for the tables' owner; '*' is the whole house.

ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenants FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON tenants
    USING (id = current_setting('antiphon.tenant', TRUE)
           OR current_setting('antiphon.tenant', TRUE) = '*');

ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE api_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON api_keys
    USING (tenant = current_setting('antiphon.tenant', TRUE)
           OR current_setting('antiphon.tenant', TRUE) = '*');

ALTER TABLE links ENABLE ROW LEVEL SECURITY;
ALTER TABLE links FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON links
    USING (tenant = current_setting('antiphon.tenant', TRUE)
           OR current_setting('antiphon.tenant', TRUE) = '*');

ALTER TABLE recordings ENABLE ROW LEVEL SECURITY;
ALTER TABLE recordings FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON recordings
    USING (tenant = current_setting('antiphon.tenant', TRUE)
           OR current_setting('antiphon.tenant', TRUE) = '*');

ALTER TABLE participants ENABLE ROW LEVEL SECURITY;
ALTER TABLE participants FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON participants
    USING (tenant = current_setting('antiphon.tenant', TRUE)
           OR current_setting('antiphon.tenant', TRUE) = '*');

ALTER TABLE audit ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON audit
    USING (tenant = current_setting('antiphon.tenant', TRUE)
           OR current_setting('antiphon.tenant', TRUE) = '*');

ALTER TABLE webhook_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE webhook_events FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON webhook_events
    USING (tenant = current_setting('antiphon.tenant', TRUE)
           OR current_setting('antiphon.tenant', TRUE) = '*');

ALTER TABLE erasures ENABLE ROW LEVEL SECURITY;
ALTER TABLE erasures FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON erasures
    USING (tenant = current_setting('antiphon.tenant', TRUE)
           OR current_setting('antiphon.tenant', TRUE) = '*');

ALTER TABLE documents ENABLE ROW LEVEL SECURITY;
ALTER TABLE documents FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON documents
    USING (tenant = current_setting('antiphon.tenant', TRUE)
           OR current_setting('antiphon.tenant', TRUE) = '*');
