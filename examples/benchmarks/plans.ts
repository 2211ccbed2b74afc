import pg from 'pg'

/** What a node and all below it took, as EXPLAIN and auto_explain write it in JSON. */
export interface PlanNode {
  'Node Type': string
  'Actual Total Time': number
  'Actual Loops': number
  'Shared Hit Blocks': number
  'Shared Read Blocks': number
  'WAL Records': number
  'WAL Bytes': number
  'Relation Name'?: string
  'Function Name'?: string
  Plans?: PlanNode[]
}

export interface Explained {
  /** Of every statement, also of those within functions, in the order of their ends. */
  plans: { 'Query Text': string; Plan: PlanNode }[]
  planningMs: number
  ms: number
}

const settings = {
  session_preload_libraries: 'auto_explain',
  'auto_explain.log_min_duration': '0',
  'auto_explain.log_nested_statements': 'on',
  'auto_explain.log_analyze': 'on',
  'auto_explain.log_buffers': 'on',
  'auto_explain.log_wal': 'on',
  'auto_explain.log_format': 'json',
  // Arrays of all keys. A server that does not know it warns and goes on.
  'auto_explain.log_parameter_max_length': '0',
  // Those plans do not say how long it took to make them.
  log_planner_stats: 'on',
  // All of it to the client, and none to the server's log.
  'auto_explain.log_level': 'notice',
  client_min_messages: 'log',
  log_min_messages: 'panic',
  lc_messages: 'C',
}

/** Lets `work` use a connection of which every plan is known. As superuser; throws where the server has no auto_explain. */
export async function explain(connectionString: string, work: (pool: pg.Pool) => Promise<unknown>): Promise<Explained> {
  const explained: Explained = { plans: [], planningMs: 0, ms: 0 }
  const messages: { message?: string | undefined; detail?: string | undefined }[] = []
  const options = Object.entries(settings).map(([name, setting]) => `-c ${name}=${setting}`).join(' ')
  const pool = new pg.Pool({ connectionString, options, max: 1 })
  pool.on('error', () => {})
  pool.on('connect', (client) => client.on('notice', (message) => messages.push(message)))
  try {
    await pool.query('select 1')
    messages.length = 0
    const began = performance.now()
    await work(pool)
    explained.ms = performance.now() - began
  } finally {
    await pool.end()
  }
  for (const { message = '', detail = '' } of messages) {
    if (/^duration: .* plan:\n/.test(message)) explained.plans.push(JSON.parse(message.slice(message.indexOf('{'))) as Explained['plans'][number])
    else if (message === 'PLANNER STATISTICS') explained.planningMs += Number(/([\d.]+) s elapsed/.exec(detail)?.[1]) * 1000
  }
  return explained
}
