import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'

// Of PgQ and of PgQue: a ticker, the maintenance that pgqd or pg_cron would do, and a consumer. Tells of each batch.

const [connectionString = '', api = '', queue = '', posts = ''] = process.argv.slice(2)

// PgQue's documented period; pgqd's is 1 s.
const tickMs = 100
// As often as pgtally's worker looks.
const pollMs = 25
// As PgQue has it; pgqd's is 120 s.
const maintenanceMs = 30_000

async function connected(): Promise<pg.Client> {
  const client = new pg.Client({ connectionString, application_name: api })
  await client.connect()
  return client
}

async function tick(): Promise<never> {
  const client = await connected()
  for (let maintainAt = performance.now() + maintenanceMs; ; await sleep(tickMs)) {
    await client.query(`select ${api}.ticker()`)
    if (performance.now() < maintainAt) continue
    maintainAt += maintenanceMs
    const { rows } = await client.query<{ func_name: string; func_arg: string | null }>(`select func_name, func_arg from ${api}.maint_operations()`)
    for (const { func_name: name, func_arg: argument } of rows) {
      if (name === 'vacuum') await client.query(`vacuum ${argument}`)
      else await client.query(`select ${name}(${argument === null ? '' : client.escapeLiteral(argument)})`)
    }
  }
}

async function consume(): Promise<never> {
  const client = await connected()
  for (;;) {
    const began = performance.now()
    // Counts and position together, so each event counts once.
    await client.query('begin')
    const { rows } = await client.query<{ batch: string | null }>(`select ${api}.next_batch($1, 'likes') as batch`, [queue])
    const batch = rows[0]?.batch
    if (batch) {
      await client.query(
        `update ${posts} set like_count = like_count + delta
        from (select ev_data::bigint as post_id, sum(ev_type::int) as delta from ${api}.get_batch_events($1) group by 1) s where id = post_id`,
        [batch],
      )
      await client.query(`select ${api}.finish_batch($1)`, [batch])
    }
    await client.query('commit')
    if (batch) console.log(JSON.stringify({ ms: performance.now() - began }))
    else await sleep(pollMs)
  }
}

const consuming = Promise.all([tick(), consume()])
console.log('started')
await consuming
