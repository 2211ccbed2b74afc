-- require_limit(counter_name, max_keys): raises unless a list may have so many keys.
--
-- Errors: TL003 when it is not from 1 to 10,000.
create or replace function pgtally.require_limit(counter_name text, max_keys integer) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    if max_keys is null or max_keys not between 1 and 10000 then
        raise exception 'Counter "%": a list of % keys cannot be had', counter_name, coalesce(max_keys::text, 'all')
            using errcode = 'TL003', hint = 'Use a limit from 1 to 10000.';
    end if;
end
$$;
