-- revoke_access(writers, readers, workers): takes back what grant_access() has given.
--
-- All rights of these roles on pgtally go, also those given by hand; what they were granted as another kind stays. Roles that do not exist (any more) are forgotten.
create or replace function pgtally.revoke_access(writers text[] default '{}', readers text[] default '{}', workers text[] default '{}') returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    schema constant regnamespace := (select relnamespace from pg_class where oid = 'pgtally.access'::regclass);
    role name;
begin
    lock table pgtally.access in share row exclusive mode;
    delete from pgtally.access a
    where (a.role_name = any (writers) and a.kind = 'writer') or (a.role_name = any (readers) and a.kind = 'reader') or (a.role_name = any (workers) and a.kind = 'worker');
    for role in select r.rolname from pg_roles r where r.rolname = any (writers || readers || workers) loop
        execute format(
            'revoke all on all tables in schema %1$s from %2$I; revoke all on all sequences in schema %1$s from %2$I; revoke all on all routines in schema %1$s from %2$I',
            schema, role);
        if not exists (select from pgtally.access a where a.role_name = role) then
            execute format('revoke all on schema %s from %I', schema, role);
        end if;
    end loop;
    perform pgtally.renew_access();
end
$$;
