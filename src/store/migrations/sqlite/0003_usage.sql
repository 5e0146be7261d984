-- What sessions have used, as their workers told it: a row for each service, provider and model.
CREATE TABLE session_usage (
    tenant        TEXT NOT NULL,
    session_id    TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    -- When the worker's session began: an agent that comes back counts anew.
    run           INTEGER NOT NULL,
    service       TEXT NOT NULL,
    provider      TEXT NOT NULL,
    model         TEXT NOT NULL,
    audio_ms      INTEGER NOT NULL DEFAULT 0,
    input_tokens  INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    characters    INTEGER NOT NULL DEFAULT 0,
    -- NULL: no price was known.
    cost_nano_usd INTEGER,
    estimated     BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (session_id, run, service, provider, model)
);

CREATE INDEX session_usage_by_time ON session_usage (tenant, run);
