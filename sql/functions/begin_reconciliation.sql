-- begin_reconciliation(counter_name, restart): the number of the counter's unfinished reconciliation, or of a new one.
--
-- restart: begin anew where one is unfinished. Go on with reconcile_range() in transactions of their own.
--
-- Errors: TL001 when there is no such counter; TL004 when the transaction is not READ COMMITTED; TL009 when it has no source.
create or replace function pgtally.begin_reconciliation(counter_name text, restart boolean default false) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.lock_corrections(counter_name);
    id bigint;
begin
    perform pgtally.require_source_rows(counter, true);
    if restart then
        -- Under a new number, so that whoever is at the old one ends.
        update pgtally.reconciliation r set reconciliation_id = default, after_key = null, checked_keys = 0, drifting_keys = 0, began_at = clock_timestamp()
        where r.counter_id = counter.counter_id;
    end if;
    insert into pgtally.reconciliation (counter_id, reason) values (counter.counter_id, 'requested')
    on conflict (counter_id) do nothing;
    select r.reconciliation_id into strict id from pgtally.reconciliation r where r.counter_id = counter.counter_id;
    return id;
end
$$;
