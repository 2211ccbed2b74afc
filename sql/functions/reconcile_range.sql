-- reconcile_range(reconciliation_id, max_keys): compares and corrects the next keys of a reconciliation, about max_keys of them.
--
-- Correction and progress are one transaction: after a crash all finished ranges are right, all others as before, and it goes on where it was. Any
-- number of processes may call it at once. Writers and workers go on meanwhile.
--
-- last_key: how far it is now; NULL when it has ended, be it by this call or another. checked_keys, drifting_keys, drifting: see
-- measure(); each of the drifting keys was corrected. Where it has ended, audit_status() says what it has found in all.
--
-- Errors: as audit_range().
create or replace function pgtally.reconcile_range(
    reconciliation_id bigint, max_keys integer default 10000,
    out last_key text, out checked_keys bigint, out drifting_keys bigint, out drifting jsonb
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter pgtally.counter;
    reconciliation pgtally.reconciliation;
begin
    checked_keys := 0;
    drifting_keys := 0;
    drifting := '[]';
    select k.* into counter from pgtally.reconciliation r join pgtally.counter k using (counter_id)
    where r.reconciliation_id = reconcile_range.reconciliation_id;
    if not found then
        return;
    end if;
    counter := pgtally.lock_corrections(counter.name);
    -- As it is now that the lock is ours.
    select * into reconciliation from pgtally.reconciliation r where r.reconciliation_id = reconcile_range.reconciliation_id;
    if not found then
        return;
    end if;
    select m.* into last_key, checked_keys, drifting_keys, drifting
    from pgtally.measure(counter, null, reconciliation.after_key, max_keys, null, true) m;
    if last_key is null then
        delete from pgtally.reconciliation r where r.reconciliation_id = reconcile_range.reconciliation_id;
        -- What a backfill finds is no drift.
        if reconciliation.reason <> 'backfill' then
            perform pgtally.record_audit(counter.name, true, reconciliation.checked_keys + reconcile_range.checked_keys,
                reconciliation.drifting_keys + reconcile_range.drifting_keys, true);
        end if;
    else
        update pgtally.reconciliation r
        set after_key = reconcile_range.last_key, checked_keys = r.checked_keys + reconcile_range.checked_keys, drifting_keys = r.drifting_keys + reconcile_range.drifting_keys
        where r.reconciliation_id = reconcile_range.reconciliation_id;
    end if;
end
$$;
