-- audit_status(): what the last audits and reconciliations have found: for each counter, one row for the last of all keys (complete) and one for the last of a sample.
--
-- audited_at: when it ended. corrected: it was a reconciliation, so the keys that drifted do so no more. A backfill is none; nor is an audit of certain keys, or against
-- a column of the target.
create or replace function pgtally.audit_status()
returns table (counter text, complete boolean, audited_at timestamptz, checked_keys bigint, drifting_keys bigint, corrected boolean)
language sql stable set search_path = pg_catalog, pg_temp as $$
    select k.name, a.complete, a.audited_at, a.checked_keys, a.drifting_keys, a.corrected
    from pgtally.last_audit a join pgtally.counter k using (counter_id)
    order by k.name, a.complete desc
$$;
