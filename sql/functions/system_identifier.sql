-- system_identifier(): what tells this database cluster from every other one.
create or replace function pgtally.system_identifier() returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
    select system_identifier from pg_control_system()
$$;
