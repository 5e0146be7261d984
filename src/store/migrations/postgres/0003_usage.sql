-- What sessions have used, as their workers told it: a row for each service, provider and model.
CREATE TABLE session_usage (
    tenant        TEXT NOT NULL,
    session_id    TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    -- When the worker's session began: an agent that comes back counts anew.
    run           BIGINT NOT NULL,
    service       TEXT NOT NULL,
    provider      TEXT NOT NULL,
    model         TEXT NOT NULL,
    audio_ms      BIGINT NOT NULL DEFAULT 0,
    input_tokens  BIGINT NOT NULL DEFAULT 0,
    cached_tokens BIGINT NOT NULL DEFAULT 0,
    output_tokens BIGINT NOT NULL DEFAULT 0,
    characters    BIGINT NOT NULL DEFAULT 0,
    -- NULL: no price was known.
    cost_nano_usd BIGINT,
    estimated     BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (session_id, run, service, provider, model)
);

CREATE INDEX session_usage_by_time ON session_usage (tenant, run);

ALTER TABLE session_usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE session_usage FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON session_usage
    USING (tenant = current_setting('antiphon.tenant', TRUE)
           OR current_setting('antiphon.tenant', TRUE) = '*');
