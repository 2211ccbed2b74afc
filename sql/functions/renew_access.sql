-- renew_access(relations): takes from PUBLIC whatever it has, and gives the roles of grant_access() their rights on these tables and views of pgtally, or,
-- where that is NULL, on everything; the one place that says what each kind may. Called wherever something is made: by create_queue(), create_counter() and an upgrade.
--
-- Most functions run with their caller's rights: EXECUTE alone lets nobody do what his rights on tables do not. So a reader may call all that is STABLE, and a worker all but
-- what is the owner's. Those that run with their owner's rights are granted one by one.
create or replace function pgtally.renew_access(relations regclass[] default null) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    -- Which may call which of the functions that run with their owner's rights, or (a reader) are VOLATILE.
    for_writers constant name[] := array['add_event', 'add_events', 'insert_event', 'is_stored'];
    for_readers constant name[] := array['audit', 'audit_keys', 'audit_range', 'is_stored', 'lock_measured', 'measure', 'measure_times', 'oldest_transaction', 'record_audit', 'require_read_committed', 'sample_keys', 'sum_delta'];
    for_workers constant name[] := for_readers || array['expire_buckets', 'receive_batch', 'rotate', 'sync_triggers']::name[];
    -- They define, correct or throw away. Without the rights on tables they would fail anyway; so they say it at once.
    for_owners constant name[] := array['accept_batch', 'begin_reconciliation', 'create_buckets', 'create_counter', 'create_queue', 'create_source', 'drop_counter', 'drop_queue', 'drop_source', 'grant_access',
        'lock_corrections', 'rebase', 'reconcile', 'reconcile_keys', 'reconcile_range', 'renew_access', 'reset_keys', 'reset_range', 'revoke_access', 'source_expression', 'unregister_consumer'];
    schema constant regnamespace := (select relnamespace from pg_class where oid = 'pgtally.access'::regclass);
    given record;
begin
    if relations is null then
        lock table pgtally.access in share row exclusive mode;
        -- A function may be called by everyone unless that is taken back, and the database may have default privileges; triggers need no right on their functions.
        execute format('revoke all on schema %1$s from public; revoke all on all tables in schema %1$s from public; revoke all on all routines in schema %1$s from public', schema);
    else
        for given in select relation from unnest(relations) relation loop
            execute format('revoke all on %s from public', given.relation);
        end loop;
        -- Not while roles are being granted, but beside others who make something.
        lock table pgtally.access in row exclusive mode;
    end if;
    for given in
        with role as (
            select r.rolname, a.kind
            from pgtally.access a join pg_roles r on r.rolname = a.role_name
            where exists (
                select from pg_namespace n, aclexplode(n.nspacl) acl
                where n.oid = schema and acl.grantee = r.oid and acl.privilege_type = 'USAGE')
        ), relation as (
            -- event_1, carry_1 … are all of one sort; slots are the partitions of the first.
            select c.oid::regclass as relation, case when c.relispartition then 'slot' else regexp_replace(c.relname, '(_\d+)+$', '_N') end as sort
            from pg_class c
            where c.relnamespace = schema and c.relkind in ('r', 'p', 'v')
                and (relations is null or c.oid = any (relations::oid[]))
        ), granted(kind, sort, rights) as (
            values
                -- Not the events' data.
                ('reader', 'event_N', 'select (ev_txid, ev_time, ev_key, ev_delta, ev_slot, ev_at)'),
                ('worker', 'slot', 'select'),
                -- Of milestones.
                ('worker', 'event_N', 'insert (ev_key, ev_delta, ev_data)'),
                ('worker', 'batch', 'insert, update, delete'),
                ('worker', 'failed_event', 'insert, update, delete'),
                ('worker', 'milestone', 'insert'),
                ('worker', 'last_audit', 'insert, update, delete'),
                ('worker', 'trend', 'update (floor)'),
                ('worker', 'consumer', 'insert (queue_id, name, system_identifier), update (paused_at, last_error, last_error_at)'),
                -- To lock a row takes UPDATE on some column; no other may be changed.
                ('worker', 'queue', 'update (created_at)'),
                ('worker', 'carry_N', 'insert, delete'),
                ('worker', 'packed_N', 'insert, delete'),
                ('worker', 'count_N', 'insert, update'),
                ('worker', 'rank_N', 'insert, update, delete'),
                ('worker', 'recent_N', 'insert, update'),
                ('worker', 'later_N', 'insert, delete'),
                ('worker', 'bucket_N', 'insert, update')
        )
        select format('grant %s on %s to %I', g.rights, t.relation, r.rolname) as statement
        from role r join granted g using (kind) join relation t using (sort)
        union all
        select format('grant select on %s to %I', t.relation, r.rolname)
        from role r, relation t
        where r.kind in ('reader', 'worker') and t.sort <> 'slot' and (r.kind = 'worker' or t.sort <> 'event_N')
        union all
        select format('grant execute on routine %s to %I', p.oid::regprocedure, r.rolname)
        from role r, pg_proc p
        where relations is null and p.pronamespace = schema
            and p.proname !~ '^(source|insert_event)_\d' and case r.kind
                when 'writer' then p.proname = any (for_writers)
                when 'reader' then p.proname = any (for_readers) or p.provolatile <> 'v' and not p.prosecdef
                else p.proname = any (for_workers) or not p.prosecdef and p.proname <> all (for_owners)
            end
    loop
        execute given.statement;
    end loop;
end
$$;
