import { statements } from './method.ts'
import type { Method } from './method.ts'

const slots = 32

/** Slotted counters: each post has 32 counts of which a like updates any one, so that likes seldom wait for one another; a read adds them up. */
export const slotted: Method = {
  name: 'slotted counters',
  async open({ pool }, tables) {
    const table = `${tables.schema}.counts`
    await pool.query(`create table ${table} (post_id bigint not null, slot integer not null, n bigint not null, primary key (post_id, slot)) with (fillfactor = 50)`)
    const upsert = (select: string) => `insert into ${table} as c (post_id, slot, n) ${select} on conflict (post_id, slot) do update set n = c.n + excluded.n`
    const one = (delta: number) => upsert(`select post_id, floor(random() * ${slots}), ${delta} from changed`)
    // In order, without which two such statements deadlock.
    const many = upsert(`select post_id, slot, count(*) from (select post_id, floor(random() * ${slots}) as slot from changed) s group by 1, 2 order by 1, 2`)
    return {
      ...statements(tables, one, many),
      stored: `select post_id, sum(n) as n from ${table} group by 1`,
      reset: async () => {
        await pool.query(`truncate ${table}`)
      },
    }
  },
}
