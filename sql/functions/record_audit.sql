-- record_audit(counter_name, complete, checked_keys, drifting_keys, corrected): keeps what an audit has found, for audit_status().
--
-- complete: it was of all keys; else of a sample, which is kept beside it. For audits that were made of several calls (audit_range, audit_keys), by who made them.
-- Returns whether it was kept: not where the role may not write it, or the transaction or server is read-only, so that those can audit as well.
--
-- Errors: TL001 when there is no such counter.
create or replace function pgtally.record_audit(counter_name text, complete boolean, checked_keys bigint, drifting_keys bigint, corrected boolean default false) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    last_audit constant regclass := 'pgtally.last_audit';
begin
    if current_setting('transaction_read_only')::boolean or not (has_table_privilege(last_audit, 'insert') and has_table_privilege(last_audit, 'update')) then
        return false;
    end if;
    insert into pgtally.last_audit as a (counter_id, complete, checked_keys, drifting_keys, corrected)
    values (counter.counter_id, record_audit.complete, record_audit.checked_keys, record_audit.drifting_keys, record_audit.corrected)
    on conflict (counter_id, complete) do update
    set audited_at = excluded.audited_at, checked_keys = excluded.checked_keys, drifting_keys = excluded.drifting_keys, corrected = excluded.corrected;
    return true;
end
$$;
