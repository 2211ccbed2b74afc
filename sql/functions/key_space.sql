-- key_space(counter): how the counter's keys are compared while it is measured: their type, and for text the collation.
--
-- A key of source or target may be beyond the range of the queue's, so whole numbers are all taken as bigint. The order of
-- texts is that of the target, whose index is the one that is always there.
create or replace function pgtally.key_space(counter pgtally.counter, out key_type text, out key_collation regcollation)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    key_type := pgtally.key_type(counter);
    if key_type in ('smallint', 'integer') then
        key_type := 'bigint';
    end if;
    key_collation := (
        select a.attcollation::regcollation from pg_attribute a
        where a.attrelid = counter.target_table and a.attname = counter.target_key and not a.attisdropped);
end
$$;
