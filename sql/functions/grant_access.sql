-- grant_access(writers, readers, workers): gives existing roles the rights on pgtally that they need, on what is there and on what is made later.
--
-- writers: may add events to counters and queues that have no source, and ask whether one is stored. A role that only writes to a source needs nothing. readers: may read
-- definitions, counts, status and dead letters, and audit. workers: may apply, clean up, and run consumers. A role may be several. The rights on the user's own tables are not
-- given: missing_rights() says which. Again it changes nothing; nothing is taken away (revoke_access).
--
-- Errors: TL001 when there is no such role.
create or replace function pgtally.grant_access(writers text[] default '{}', readers text[] default '{}', workers text[] default '{}') returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    schema constant regnamespace := (select relnamespace from pg_class where oid = 'pgtally.access'::regclass);
    given record;
begin
    -- No queue is made meanwhile, which would be missed here while it misses this (renew_access).
    lock table pgtally.access in share row exclusive mode;
    for given in
        select role_name, kind, exists (select from pg_roles r where r.rolname = role_name) as role_exists
        from (
            select unnest(writers), 'writer' union select unnest(readers), 'reader' union select unnest(workers), 'worker'
        ) wanted(role_name, kind)
    loop
        if given.role_exists is not true then
            raise exception 'There is no role "%"', given.role_name
                using errcode = 'TL001', hint = format('Create it: CREATE ROLE %I LOGIN.', given.role_name);
        end if;
        execute format('grant usage on schema %s to %I', schema, given.role_name);
        insert into pgtally.access (role_name, kind) values (given.role_name, given.kind) on conflict do nothing;
    end loop;
    perform pgtally.renew_access();
end
$$;
