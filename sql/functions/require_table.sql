-- require_table(counter_name, role, relation): raises TL003 when a counter's table was dropped; role says which it is: source or target.
create or replace function pgtally.require_table(counter_name text, role text, relation oid) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    if not exists (select from pg_class where oid = relation) then
        raise exception 'Counter "%": its % table was dropped', counter_name, role
            using errcode = 'TL003', hint = 'Drop the counter, too; if there is a new table, create the counter again for that.';
    end if;
end
$$;
