-- session_search_path(target): the search_path under which the target's triggers are to run: the session's default, which is
-- what an application that uses the same connection settings has. Where there are no triggers, the short one.
create or replace function pgtally.session_search_path(target regclass) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select case
        when exists (select from pg_trigger where tgrelid = target and not tgisinternal)
            then (select reset_val from pg_settings where name = 'search_path')
        else 'pg_catalog, pg_temp'
    end
$$;
