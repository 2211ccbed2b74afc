-- target_headroom(): for each counter whose column is smaller than bigint: the largest count that is known, without reading the table.
--
-- type: smallint or integer. largest: with an index that begins with the column, exact (found_by 'index'); else the largest of what ANALYZE has seen and of the counts
-- of the keys of the newest thousand events, among which a key that grows fast is sure to be (found_by 'sample'). NULL when nothing is known. limit_value: what the column can hold.
create or replace function pgtally.target_headroom()
returns table (counter text, target regclass, target_column name, type text, largest bigint, limit_value bigint, found_by text)
language plpgsql stable set search_path = pg_catalog, pg_temp set row_security = off set lock_timeout = '10ms' set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
    found_counter record;
    recent bigint;
begin
    for found_counter in
        select k.*, c.queue_id, a.atttypid::regtype::text as type,
            exists (
                select from pg_index i join pg_class x on x.oid = i.indexrelid join pg_am m on m.oid = x.relam
                where i.indrelid = k.target_table and i.indkey[0] = a.attnum and i.indisvalid and i.indpred is null and m.amname = 'btree') as indexed,
            (
                select max(v.value)
                from pg_class t join pg_namespace n on n.oid = t.relnamespace
                join pg_stats s on s.schemaname = n.nspname and s.tablename = t.relname and s.attname = k.target_column,
                unnest(s.most_common_vals::text::bigint[] || s.histogram_bounds::text::bigint[]) v(value)
                where t.oid = k.target_table) as analyzed
        from pgtally.counter k
        join pgtally.consumer c on c.consumer_id = k.counter_id
        join pg_attribute a on a.attrelid = k.target_table and a.attname = k.target_column and not a.attisdropped
        where a.atttypid in ('smallint'::regtype, 'integer'::regtype)
        order by k.name
    loop
        counter := found_counter.name;
        target := found_counter.target_table;
        target_column := found_counter.target_column;
        type := found_counter.type;
        limit_value := case type when 'smallint' then 32767 else 2147483647 end;
        largest := found_counter.analyzed;
        found_by := 'sample';
        begin
            if found_counter.indexed then
                execute format('select max(%I) from %s', found_counter.target_column, found_counter.target_table) into largest;
                found_by := 'index';
            elsif pgtally.is_unique_key(found_counter.target_table, found_counter.target_key) then
                execute format('select max(t.%1$I) from %2$s t where t.%3$I in (select e.ev_key from pgtally.event_%4$s e order by e.ev_txid desc limit 1000)',
                    found_counter.target_column, found_counter.target_table, found_counter.target_key, found_counter.queue_id)
                into recent;
                largest := greatest(largest, recent);
            end if;
        exception when insufficient_privilege or lock_not_available then
            -- What ANALYZE has seen is what there is.
            null;
        end;
        return next;
    end loop;
end
$$;
