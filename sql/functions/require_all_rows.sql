-- require_all_rows(counter_name, relation): raises TL003 where row-level security hides rows of the table from the current role, so that it cannot count them.
--
-- The server would refuse the statement by itself (row_security = off), without saying what to do.
create or replace function pgtally.require_all_rows(counter_name text, relation regclass) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    if row_security_active(relation) then
        raise exception 'Counter "%": row-level security hides rows of % from the role "%"', counter_name, relation, current_user
            using errcode = 'TL003', hint = format('Give the role BYPASSRLS, or let it own the table without FORCE ROW LEVEL SECURITY: ALTER ROLE %I BYPASSRLS.', current_user);
    end if;
end
$$;
