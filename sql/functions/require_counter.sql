-- require_counter(counter_name): the counter of that name.
--
-- Errors: TL001 when there is none.
create or replace function pgtally.require_counter(counter_name text) returns pgtally.counter
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    counter pgtally.counter;
begin
    select * into counter from pgtally.counter k where k.name = counter_name;
    if not found then
        raise exception 'There is no counter "%"', counter_name
            using errcode = 'TL001', hint = 'Make it with create_counter(), or see the names in counter_status().';
    end if;
    return counter;
end
$$;
