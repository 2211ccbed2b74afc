-- missing_rights(): the rights on the user's own tables that roles of grant_access() still lack, each as the statement that gives it, to be run by whoever owns the table.
--
-- A worker: what add_deltas() takes on a counter's target. A reader: what get_counts() takes. To audit it takes SELECT on the source as well, which is not listed.
create or replace function pgtally.missing_rights() returns table (role_name name, statement text)
language sql stable set search_path = pg_catalog, pg_temp as $$
    with target as (
        select r.oid as role, r.rolname, a.kind, k.target_table, k.target_key, k.target_column, k.on_missing, n.oid as namespace, n.nspname
        from pgtally.access a
        join pg_roles r on r.rolname = a.role_name
        cross join pgtally.counter k
        join pg_class c on c.oid = k.target_table
        join pg_namespace n on n.oid = c.relnamespace
        where a.kind <> 'writer' and not k.own_target
            -- One that has not got the column any more says so in counter_problems().
            and 2 = (select count(*) from pg_attribute t where t.attrelid = c.oid and t.attname in (k.target_key, k.target_column))
    ), wanted as (
        select t.*, w.privilege, w.columns
        from target t, lateral (values
            ('SELECT', array[t.target_key, t.target_column], true),
            ('UPDATE', array[t.target_column], t.kind = 'worker'),
            ('INSERT', array[t.target_key, t.target_column], t.kind = 'worker' and t.on_missing = 'insert')
        ) w(privilege, columns, needed)
        where w.needed and exists (select from unnest(w.columns) c where not has_column_privilege(t.role, t.target_table, c, w.privilege))
    )
    select distinct t.rolname, format('GRANT USAGE ON SCHEMA %I TO %I', t.nspname, t.rolname)
    from target t where not has_schema_privilege(t.role, t.namespace, 'usage')
    union
    select w.rolname, format('GRANT %s ON %s TO %I', string_agg(distinct format('%s (%s)', w.privilege, (select string_agg(quote_ident(c), ', ') from unnest(w.columns) c)), ', '), w.target_table, w.rolname)
    from wanted w group by w.rolname, w.target_table, w.target_column
    order by 1, 2 desc
$$;
